"""Classification data: from folders and archives of images to batches."""
