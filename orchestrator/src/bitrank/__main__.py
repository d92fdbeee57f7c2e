"""``python -m bitrank``: the same as the ``bitrank`` command."""

import sys

from bitrank.cli import main

sys.exit(main())
