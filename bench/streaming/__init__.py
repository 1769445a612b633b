"""What a front end costs for each streamed token: Naru with everything on, and others before an engine that is played."""
