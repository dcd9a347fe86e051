"""What the two servers share: lifecycle, errors → status, RPC metrics, logs. Knows no model and no store."""
