"""``python -m bitrank``: the same as the ``bitrank`` command."""

import sys

from bitrank.cli.main import main

sys.exit(main())
