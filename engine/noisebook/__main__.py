"""`python -m noisebook` is the command line."""

import sys

from noisebook.cli.main import main

sys.exit(main())
