"""`python -m benchmarks.methods`, see campaign.py: processes of their own look there for what they are to do."""

import sys

from benchmarks.methods.campaign import main

sys.exit(main())
