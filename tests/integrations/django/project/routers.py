"""Which database our tables are in."""


class Chosen:
    """Puts them where a test says."""

    alias = None

    def db_for_read(self, model, **hints):
        # Not where they are written: nothing of ours may ask a replica.
        return "other" if model._meta.app_label == "oneai" and self.alias else None

    def db_for_write(self, model, **hints):
        return self.alias if model._meta.app_label == "oneai" else None
