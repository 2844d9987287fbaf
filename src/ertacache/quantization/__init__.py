"""Corrections of quantised denoisers: fitted to the full-precision run, chosen, judged."""
