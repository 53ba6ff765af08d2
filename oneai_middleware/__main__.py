"""``python -m oneai_middleware`` is ``oneai``."""

import sys

from .cli import main

sys.exit(main())
