"""The project's own Python as models."""

from project.models import Note


def pausing(request):
    """One word, and nothing more until the caller has left."""
    yield "one "
    request.cancellation.wait(30)


def silent(request):
    """At work, without a word, until the caller has left."""
    yield None
    request.cancellation.wait(30)


def notes(request):
    """What the database holds."""
    return ", ".join(Note.objects.order_by("id").values_list("text", flat=True))
