"""Feature sets on the Hugging Face Hub: how they are named, pushed and fetched."""
