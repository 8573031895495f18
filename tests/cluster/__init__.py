"""Several servers on one PostgreSQL and one bucket, killed at random: nothing may be lost."""
