"""Looks at an experiment without changing it: leaks (`audit`), a plan (`dry_run`), costs (`cost`)."""
