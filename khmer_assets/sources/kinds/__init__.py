"""The kinds of source. Each module here is one, under the name that the catalogue gives it; there is nothing else.

A kind whose data lies ready has `read(source, base)`, an iterator of rows (`rows.py`). A kind that fetches has
`collect(source, base, collection, log)` instead: it adds what is new to the source's `Collection`, reports progress
through `log(text)` and returns figures. Both have `fingerprint(source, base)`, a digest that changes exactly when the
source's data or its entry does, and a class of settings that the module's docstring explains. `base` is the
catalogue's folder.
"""
