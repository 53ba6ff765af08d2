"""A middleware of the project's, as many have one."""

from project.models import Note


def counting(get_response):
    """Asks the database on the way in and on the way out."""

    def middleware(request):
        Note.objects.count()
        response = get_response(request)
        Note.objects.count()
        return response

    return middleware
