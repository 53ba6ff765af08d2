"""The admin's forms: money in dollars, models by name, limits beside each other."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.admin.widgets import AdminSplitDateTime

from ...accounts import Limits, check_key_fields, check_name, dollars, read_dollars
from ...errors import ConfigurationError, unknown_name
from .conf import gateway
from .fields import EPOCH, aware, local, now
from .models import Account, APIKey


class DollarsField(forms.CharField):
    """An amount in dollars, exactly, as nano-dollars; ``None`` where none is given."""

    def prepare_value(self, value: Any) -> Any:
        """Nano-dollars as they are written."""
        return dollars(value) if isinstance(value, int) else value

    def to_python(self, value: Any) -> Any:
        """What is written, in nano-dollars."""
        text = super().to_python(value)
        if not text:
            return None
        try:
            return read_dollars(text, "amount")
        except ConfigurationError as error:
            raise forms.ValidationError(str(error), code="invalid") from None


class NamesField(forms.CharField):
    """Names with commas between them, as a list; ``None`` where there are none."""

    def prepare_value(self, value: Any) -> Any:
        """The names as they are written."""
        return ", ".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        """What is written, as a list."""
        names = map(str.strip, (super().to_python(value) or "").split(","))
        return sorted({name for name in names if name}) or None

    def has_changed(self, initial: Any, data: Any) -> bool:
        """Whether other names are written than there were."""
        changed: bool = self.to_python(data) != (initial or None)
        return changed


class LimitsWidget(forms.MultiWidget):
    """Three numbers beside each other."""

    def __init__(self) -> None:
        names = ("requests a minute", "tokens a minute", "calls at once")
        super().__init__(
            [forms.NumberInput({"placeholder": name, "aria-label": name}) for name in names]
        )

    def decompress(self, value: Any) -> list[Any]:
        """The numbers of what the table holds."""
        return [(value or {}).get(name) for name in Limits._fields]


class LimitsField(forms.MultiValueField):
    """Limits as the tables hold them; ``None`` where no number is given."""

    def __init__(self, **kwargs: Any) -> None:
        numbers = [
            forms.IntegerField(min_value=1, max_value=10**12 - 1, required=False)
            for _ in Limits._fields
        ]
        super().__init__(numbers, widget=LimitsWidget(), require_all_fields=False, **kwargs)

    def compress(self, data_list: list[int | None]) -> dict[str, int | None] | None:
        """The numbers as the table holds them."""
        if not any(data_list):
            return None
        return Limits(*data_list)._asdict()


class MomentWidget(AdminSplitDateTime):
    """A date and a time of day, as the project's pages write them."""

    def decompress(self, value: Any) -> Any:
        """The two of what the table holds."""
        return super().decompress(local(value) if value else None)


class MomentField(forms.SplitDateTimeField):
    """A moment in a date and a time of day."""

    widget = MomentWidget

    def compress(self, data_list: Any) -> Any:
        """The moment of what is written."""
        written = super().compress(data_list)
        return None if written is None else aware(written)


class _RightsForm(forms.ModelForm):  # type: ignore[type-arg]
    """What an account and a key have in common.

    What the database has refused (``refusal`` says so) is refused here, to be sent again.
    """

    refusal: str | None = None
    models = NamesField(
        required=False, help_text="The only models it may use, with commas between; empty: all."
    )
    limits = LimitsField(required=False)

    def clean_models(self) -> list[str] | None:
        """The models, of which the new ones are there."""
        models: list[str] | None = self.cleaned_data["models"]
        known = gateway().catalog
        for model in set(models or ()).difference(self.instance.models or (), known):
            raise forms.ValidationError(unknown_name("model", model, known), code="invalid")
        return models

    def clean(self) -> Any:
        """Leave alone what nobody has touched: an empty list and limits without numbers
        look like none, and mean something else."""
        if self.refusal:
            raise forms.ValidationError(self.refusal, code="unavailable")
        for name in {"models", "limits"}.difference(self.changed_data):
            self.cleaned_data[name] = getattr(self.instance, name)
        return super().clean()


class AccountForm(_RightsForm):
    """Who pays and what they may."""

    tier = forms.ChoiceField()

    class Meta:
        model = Account
        fields = ("name", "owner", "tier", "prepaid", "models", "limits")
        help_texts = {"prepaid": "Otherwise its calls are invoiced and never refused for money."}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "tier" not in self.fields:
            return  # whoever may not change what is worth money has neither
        tiers = dict.fromkeys([*gateway().tiers, self.instance.tier])
        self.fields["tier"].choices = [(tier, tier) for tier in tiers]  # type: ignore[attr-defined]
        self.fields["limits"].help_text = "Instead of those of its tier."

    def clean_name(self) -> str:
        """A name that books and keys can know it by."""
        name: str = self.cleaned_data["name"]
        try:
            check_name("name", name)
        except ValueError as error:
            raise forms.ValidationError(str(error), code="invalid") from None
        return name


class KeyForm(_RightsForm):
    """What a key is for and what it may. Nothing secret passes through it."""

    budget = DollarsField(required=False, help_text="The most it may spend, in dollars.")
    expires = MomentField(required=False)

    class Meta:
        model = APIKey
        fields = ("account", "label", "models", "limits", "budget", "period", "expires")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["limits"].help_text = "Beside those of its account."

    def clean_period(self) -> str | None:
        """The period, which only a budget has."""
        period: str | None = self.cleaned_data["period"] or None
        without = self.cleaned_data.get("budget") is None and "budget" not in self.errors
        if period and without:
            raise forms.ValidationError("A period goes with a budget.", code="invalid")
        return period

    def clean(self) -> Any:
        """Refuse what no key store would keep."""
        cleaned = super().clean()
        for name in {"label", "models", "budget"}.intersection(self.cleaned_data):
            try:
                check_key_fields({name: self.cleaned_data[name]})
            except ValueError as error:
                self.add_error(name, str(error))
        return cleaned

    def clean_expires(self) -> Any:
        """When it expires, which for a new key is yet to come."""
        expires = self.cleaned_data["expires"]
        if expires is not None and expires <= (now() if self.instance._state.adding else EPOCH):
            raise forms.ValidationError("This has passed already.", code="invalid")
        return expires


class TopUpForm(forms.Form):
    """Money for an account, once for each reference."""

    amount = DollarsField(help_text="In dollars, such as 25 or 12.50.")
    reference = forms.CharField(
        max_length=190, help_text="Names the payment: the same one is booked once."
    )

    def clean_amount(self) -> int:
        """The amount, which is above zero."""
        amount: int = self.cleaned_data["amount"]
        if not amount:
            raise forms.ValidationError("A top-up is above zero.", code="invalid")
        return amount
