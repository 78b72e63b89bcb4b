import sys

from unionfs.start import main

sys.exit(main())
