"""Sweeps: jobs of another kind."""

import sqlalchemy as sa
from alembic import op

revision = "0006_sweeps"
down_revision = "0005_models_webhooks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Whatever there was is an ordinary job."""
    op.add_column("jobs", sa.Column("kind", sa.String(), nullable=False, server_default="job"))
    op.create_index("jobs_of_kind", "jobs", ["project_id", "kind", "id"], unique=False)
