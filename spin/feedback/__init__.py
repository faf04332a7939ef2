"""Turn the opponent's samples into training rows: reward sources and row builders."""
