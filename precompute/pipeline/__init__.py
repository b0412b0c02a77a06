"""Reader, encoder, writer: media of a data folder through a frozen encoder into shards."""
