"""Moments as the tables, the pages and the fixtures have them."""

from datetime import UTC, date, datetime

import pytest
from django.core import serializers
from django.core.exceptions import FieldError, ValidationError
from django.forms import modelform_factory
from django.test import override_settings

from oneai_middleware.integrations.django.models import TopUp

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
WITHOUT_ZONES = {"USE_TZ": False, "TIME_ZONE": "America/New_York"}


@pytest.fixture
def row(clean):
    """A top-up of the first of November, noon."""
    return TopUp.objects.create(reference="r1", account="alice", amount=1, booked_at=NOON)


def found(**conditions):
    return TopUp.objects.filter(**conditions).exists()


@pytest.mark.parametrize("zones", [{}, WITHOUT_ZONES])
def test_a_moment_is_found_by_a_day_a_time_or_what_is_written_of_one(row, zones):
    with override_settings(**zones):
        assert found(booked_at=NOON)
        assert found(booked_at="2026-11-01T12:00:00Z")
        assert found(booked_at__gte="2026-11-01")
        assert found(booked_at__gte=date(2026, 11, 1))
        assert found(booked_at__range=(date(2026, 11, 1), "2026-11-02"))
        assert found(booked_at__in=[NOON, "2026-11-02"])
        assert not found(booked_at__lt="2026-11-01")
        assert not found(booked_at=date(2026, 11, 1))


def test_what_has_no_time_zone_is_in_the_projects(row):
    with override_settings(TIME_ZONE="America/New_York"):
        TopUp.objects.update(booked_at="2026-07-01")
    row.refresh_from_db()
    assert row.booked_at == datetime(2026, 7, 1, 4, tzinfo=UTC)


@pytest.mark.parametrize("value", ["soon", 5, "9999-12-31T23:00:00-05:00", object()])
def test_what_is_no_moment_is_refused(row, value):
    with pytest.raises(ValidationError):
        found(booked_at__gte=value)


@pytest.mark.parametrize("part", ["date", "year", "hour"])
def test_there_is_no_looking_for_a_part_of_a_moment(row, part):
    with pytest.raises(FieldError):
        found(**{f"booked_at__{part}": 1})


@pytest.mark.parametrize("kind", ["json", "xml"])
def test_a_fixture_has_the_moment(row, kind):
    text = serializers.serialize(kind, [row])
    assert "2026-11-01T12:00:00" in text
    [again] = serializers.deserialize(kind, text)
    assert again.object.booked_at == NOON


@pytest.mark.parametrize("zones", [{}, {"TIME_ZONE": "America/New_York"}, WITHOUT_ZONES])
def test_a_form_of_the_projects_changes_no_moment_that_nobody_touched(row, zones):
    with override_settings(**zones):
        form_class = modelform_factory(TopUp, fields=["booked_at"])
        shown = form_class(instance=row)["booked_at"]
        text = shown.field.widget.format_value(shown.value())
        form = form_class({"booked_at": text}, instance=row)
        assert (form.changed_data, form.errors) == ([], {})
        form.save()
        row.refresh_from_db()
        assert row.booked_at == NOON
        assert not form_class({"booked_at": ""}, instance=row).is_valid()
