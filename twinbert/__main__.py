"""`python -m twinbert`: the command where it is not on the path, as in the processes that it starts itself."""

import sys

from twinbert.cli import main

sys.exit(main())
