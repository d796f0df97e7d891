"""The fault suite: real processes, real kills, and a checker that trusts neither Redis nor LanceDB."""
