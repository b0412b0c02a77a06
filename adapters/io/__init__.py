"""Adapter folders on disk and on the Hub: checkpoint, schema, card, imports, exports."""
