"""Results to read: terminal tables and one self-contained HTML page.

Everything here is drawn from a `Comparison` (or its JSON); no checkpoint is ever opened.
"""
