"""The shelf, and what stands on it."""

from django.db import migrations, models

GOODS = {"teapot": 4, "kettle": 0, "cup": 120}


def fill(apps, schema_editor):
    """Put the first goods on the shelf."""
    product = apps.get_model("shop", "Product")
    product.objects.bulk_create(product(name=name, stock=left) for name, left in GOODS.items())


class Migration(migrations.Migration):
    """One table."""

    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            "Product",
            [
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=80, unique=True)),
                ("stock", models.PositiveIntegerField()),
            ],
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
    ]
