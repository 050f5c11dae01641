"""The page: one picture, one question, several decoders, answers side by side."""
