"""The OIPs of a whole network, kept in one folder: made unit by unit, resumed, and shown."""
