"""What alembic runs: the migrations, on the connection and in the transaction of `Database.migrate`."""

from alembic import context

from raydml.jobs.schema import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
context.run_migrations()
