"""`python -m launcher`: the same command as `shardwright`, for `ray job submit`."""

from launcher.cli import main

raise SystemExit(main())
