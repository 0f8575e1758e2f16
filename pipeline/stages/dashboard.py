"""Build W&B dashboards: a file each, and online the workspaces themselves.

Reads   conf/dashboard/
Writes  NAME.json          what W&B would be sent

    cinevox dashboard output=FOLDER                         all of them
    cinevox dashboard output=FOLDER dashboard=[training]    some
    cinevox dashboard output=FOLDER tracking=online tracking.entity=TEAM    and saved in the project of W&B

A workspace that is saved twice is there twice: delete the older one in W&B. docs/how-to/dashboards.md says more.
"""

from __future__ import annotations

from pipeline.artifacts import claim_output, write_json
from pipeline.errors import ConfigError
from pipeline.progress import say
from pipeline.settings import Config
from pipeline.tracking.dashboards import as_plain_data, build_workspace, save_workspace


def run(config: Config) -> None:
    """Build the dashboards that ``config.dashboard`` holds into ``config.output``.

    Raises:
        ConfigError: The extra 'dashboards' is not installed, or online no entity is set or W&B cannot be reached.
    """
    assert config.output is not None
    online = config.tracking.logger == "wandb" and config.tracking.mode == "online"
    if online and not config.tracking.entity:
        raise ConfigError("A workspace is saved for a user or a team", remedy="Set tracking.entity=NAME")
    workspaces = {name: build_workspace(board, config.tracking) for name, board in config.dashboard.items()}
    if config.dry_run:
        say(f"Would build {', '.join(workspaces)} into '{config.output}'{' and save them in W&B' * online}")
        return
    data = {name: as_plain_data(workspace) for name, workspace in workspaces.items()}
    claim = claim_output(config.output, "dashboard", data)
    for name, content in data.items():
        write_json(config.output / f"{name}.json", content)
    if online:
        for name, workspace in workspaces.items():
            say(f"{name}: {save_workspace(workspace)}")
    claim.finish()
    say(f"Dashboards {', '.join(data)} in '{config.output}'")
