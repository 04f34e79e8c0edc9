"""Where images come from: mirrors, folders, archives, the Hub, S3."""
