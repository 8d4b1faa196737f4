"""`python -m noisebook` is the command line."""

import sys

from noisebook.cli import main

sys.exit(main())
