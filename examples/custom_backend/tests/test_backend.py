"""The backend keeps the contract of its family, and does its own work."""

from oneai_faq.backend import FAQBackend

from oneai_middleware.testing import BackendContract, said


class TestFAQBackend(BackendContract):
    backend_class = FAQBackend
    options = {"answers": {"New": "A kettle.\nAnd a cup.", "old": "The teapot."}}

    def make_refusing_backend(self):
        return FAQBackend(answers={"hours": "From nine to five."})

    def test_it_gives_the_answer_whose_keyword_is_asked_for(self, backend):
        assert said(backend.complete(self.request("Something NEW?"))) == [
            ("A kettle.\nAnd a cup.", "stop")
        ]
