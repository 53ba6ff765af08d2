"""What runserver, gunicorn and every other WSGI server load: ``shop.wsgi:application``."""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
application = get_wsgi_application()

if "SHOP_API_KEY" not in os.environ:
    print(f"alice's API key for this run: {settings.ALICE_KEY}", flush=True)
