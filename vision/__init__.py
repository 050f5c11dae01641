"""Images in and out: files, encoded features, where each token lies in the image, noise."""
