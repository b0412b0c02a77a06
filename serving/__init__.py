"""`periscope serve`: adapters behind an API like OpenAI's, for one model thread.

`requests` reads what is sent, `engine` answers one request at a time, `replies` writes what is sent back, `app` is the
web application, `access` says who may ask, `fetching` gets media at public addresses, and `start` runs it all.
"""
