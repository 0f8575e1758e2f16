"""Miniature sizes of every method under conf/model, as overrides in Hydra's style."""

_VID2VID = [
    "model.module.generator.width=4",
    "model.module.generator.downsamplings=2",
    "model.module.generator.blocks=2",
    "model.module.image_discriminator.width=4",
]

_AUTOENCODER = [
    "model.module.autoencoder.latent_channels=3",
    "model.module.autoencoder.width=4",
    "model.module.autoencoder.multipliers=[1,2]",
    "model.module.autoencoder.blocks=1",
    "model.module.autoencoder.groups=2",
    "model.module.autoencoder.encoder_attention=[1]",
]
_TRANSFORMER = [
    "model.module.transformer.modalities=[cbct,ct,t1]",
    "model.module.transformer.channels=3",
    "model.module.transformer.width=12",
    "model.module.transformer.depth=2",
    "model.module.transformer.heads=2",
    "model.module.transformer.frames=2",
]

# Methods that begin with the weights of another one: the argument that takes its checkpoint, and that method.
EARLIER: dict[str, tuple[str, str]] = {
    "latent_translator": ("autoencoder_checkpoint", "latent_autoencoder"),
    "latent_decoder": ("translator_checkpoint", "latent_translator"),
}

MINIATURE: dict[str, list[str]] = {
    "cyclegan": [
        "model.module.generator.width=4",
        "model.module.generator.blocks=2",
        "model.module.discriminator.width=4",
        "model.module.discriminator.layers=2",
        "model.module.pool=3",
    ],
    "identity": [],
    "latent_autoencoder": [*_AUTOENCODER, "model.module.discriminator.width=4", "model.module.gan_start=0"],
    "latent_decoder": [
        *_AUTOENCODER,
        *_TRANSFORMER,
        "model.module.discriminator.width=4",
        "model.module.gan_start=0",
    ],
    "latent_translator": [*_AUTOENCODER, *_TRANSFORMER],
    "pix2pix": [
        "model.module.generator.width=4",
        "model.module.generator.depth=3",  # without dropout, which draws anew in a training that is resumed
        "model.module.discriminator.width=4",
        "model.module.discriminator.layers=2",
    ],
    "regression": ["model.module.network.widths=[4,8]", "model.module.network.residual_units=1"],
    "vid2vid": [*_VID2VID, "model.module.temporal_discriminator.width=4"],
    "vid2vid_fine": [*_VID2VID, "model.module.temporal_discriminator.width=4", "model.module.generator.local_blocks=1"],
    "vid2vid_learned_flow": [
        *_VID2VID,
        "model.module.temporal_discriminator.width=4",
        "model.module.flow_network.widths=[4,4,4]",
    ],
    "vid2vid_slice": _VID2VID,
}
