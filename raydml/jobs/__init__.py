"""Jobs of a server: their records in a database, the supervisor that brings them to their end, the process of one try.

Nothing here loads torch but `attempt`, and nothing loads Ray but `attempt` and `ray_jobs`.
"""
