"""The legacy artifact as SQLModel declares it; its annotations are read when the class is made."""

from sqlmodel import Field, SQLModel

__all__ = ["Artifact"]


class Artifact(SQLModel, table=True):
    __tablename__ = "consensus_artifacts"

    id: int | None = Field(default=None, primary_key=True)
    spec_id: str
    stage: str
    agent_name: str
    content_json: str
    response_text: str | None = None
    run_id: str | None = None
    created_at: str | None = None
