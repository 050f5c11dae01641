"""VASparse, and its contrast with the last token's embedding."""
