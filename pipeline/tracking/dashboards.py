"""W&B workspaces from ``conf/dashboard/``: built offline as plain data, saved where W&B is reached."""

from __future__ import annotations

from typing import Any

from pipeline.dashboard_settings import DashboardSettings, PanelSettings
from pipeline.errors import ConfigError
from pipeline.settings import TrackingSettings
from pipeline.tracking.segments import STEP


def build_workspace(dashboard: DashboardSettings, tracking: TrackingSettings) -> Any:
    """Return the dashboard as a ``wandb_workspaces`` workspace; nothing is sent.

    Raises:
        ConfigError: The extra 'dashboards' is not installed.
    """
    try:
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise ConfigError(
            "'cinevox dashboard' needs wandb-workspaces", remedy="Install it: pip install 'cinevox[dashboards]'"
        ) from None
    return workspaces.Workspace(
        entity=tracking.entity,
        project=tracking.project,
        name=dashboard.title,
        sections=[
            workspaces.Section(name=group.title, panels=[_panel(panel) for panel in group.panels], is_open=True)
            for group in dashboard.sections
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
        runset_settings=workspaces.RunsetSettings(
            filters=workspaces.And(workspaces.Metric("JobType").isin(list(dashboard.verbs))),
            groupby=[workspaces.Metric("Group")],
        ),
    )


def _panel(panel: PanelSettings) -> Any:
    import wandb_workspaces.reports.v2 as charts

    if panel.kind == "bars":
        return charts.BarPlot(title=panel.title, metrics=[*panel.keys])
    if panel.kind == "media":
        return charts.MediaBrowser(title=panel.title, media_keys=panel.keys)
    return charts.LinePlot(
        title=panel.title,
        x=STEP,
        y=[*panel.keys],
        metric_regex=f"^{panel.pattern}$" if panel.pattern else None,
        log_y=panel.logarithmic or None,
    )


def as_plain_data(workspace: Any) -> dict[str, Any]:
    """Return what W&B would be sent, with panels numbered where it draws their ids by chance."""
    data: dict[str, Any] = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    for place, group in enumerate(data["spec"]["section"]["panelBankConfig"]["sections"]):
        for number, panel in enumerate(group["panels"]):
            panel["__id__"] = f"panel-{place}-{number}"
    return data


def save_workspace(workspace: Any) -> str:
    """Save the workspace in W&B and return its address.

    Raises:
        ConfigError: W&B cannot be reached, or refuses the key or the entity.
    """
    import requests
    import wandb

    try:
        workspace.save()
    except (wandb.errors.Error, requests.RequestException, ValueError) as error:
        raise ConfigError(
            f"The workspace was not saved in W&B ({type(error).__name__}); its file is written",
            remedy="Check the network, 'wandb login' and tracking.entity, then run the same command again",
        ) from None
    return str(workspace.url)
