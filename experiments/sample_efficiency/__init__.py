"""How many evaluations a strategy needs: problems without models, contestants, a study of them."""
