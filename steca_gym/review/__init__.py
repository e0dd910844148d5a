"""People decide about corrections: which ones wait for a decision, edits that are executed, and the page to decide on.

Nothing is imported here, since every run reads ``review.config``: import from the modules.
"""
