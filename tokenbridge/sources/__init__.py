"""Sources of images: mirrors, folders, archives, the Hub, S3."""
