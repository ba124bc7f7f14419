"""Running ``harvester run`` without a person: units of systemd, lines of cron and scrontab."""
