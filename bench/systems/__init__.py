"""A module each: how a system is started (`bench.driver.System`) and what one call of it is (`connect`)."""
