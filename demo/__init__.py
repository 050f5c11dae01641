"""The page: one image, one question, several decoders, answers side by side."""
