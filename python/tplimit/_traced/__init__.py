"""Programs of other frameworks: the traced form (form.py), its text (emit.py), what is wrong with it (lint.py)."""
