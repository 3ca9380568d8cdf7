"""Scores: of cases, of cross-validation, and the choice of the best model or ensemble."""
