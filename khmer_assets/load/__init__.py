"""The load on the server: what users have asked of it, and what it bears when it is measured."""
