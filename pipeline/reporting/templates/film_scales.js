// What stands below the panes: the scales of greys and of differences, and the error of every slice.

/** Draw both scales as strips with their ends. `colours` are those of differences. */
function drawScales(player, colours) {
  const { parts, film, span } = player;
  const { levels, step } = film.target;
  const strip = (canvas, colour) => {
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, 1);
    new Uint32Array(image.data.buffer).set(Array.from({ length: canvas.width }, (_, x) => colour(x)));
    context.putImageData(image, 0, 0);
  };
  strip(parts["grey-bar"], (x) => 0xff000000 | (x * 0x010101));
  strip(parts["difference-bar"], (x) => colours[clamp(levels + Math.round(((x / 128 - 1) * span) / step), 0, 2 * levels)]);
  const words = (node, ...texts) => {
    node.replaceChildren();
    for (const text of texts) make("span", node, "", text);
  };
  const { level, width } = player.window;
  const ends = [level - width / 2, level + width / 2].map((value) => player.format(value));
  words(parts["grey-text"], ends[0], `grey scale [${film.unit}]`, ends[1]);
  const end = player.format(span);
  words(parts["difference-text"], `−${end}`, `difference to the target [${film.unit}]`, `+${end}`);
}

/** Draw the error of each axial slice, measured before thinning, as a mountain; the current slice as a line. */
function drawErrors(player) {
  const { film, compared } = player;
  const index = player.at[SLICE];
  const canvas = player.parts.errors;
  const { errors } = compared;
  const sharp = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.max(1, canvas.clientWidth * sharp), canvas.clientHeight * sharp];
  const context = canvas.getContext("2d");
  const largest = Math.max(...errors.map((error) => error ?? 0)) || 1;
  const step = canvas.width / errors.length;
  for (const [slice, error] of errors.entries()) {
    const tall = ((error ?? 0) / largest) * canvas.height;
    context.fillStyle = slice === index ? "#f2c94c" : "#3f7fb5";
    context.fillRect(slice * step, canvas.height - tall, Math.max(1, step > 4 ? step - 1 : step), tall);
  }
  context.fillStyle = "#f2c94c";
  context.fillRect((index + 0.5) * step - sharp / 2, 0, sharp, canvas.height);
  const text = errors[index] === null ? "–" : `${player.format(errors[index], 1)} ${film.unit}`;
  const where = `${compared.name}: MAE of this axial slice, ${film.region.name}, ${text}`;
  player.parts["errors-text"].textContent = `${where}; highest ${player.format(largest, 1)} ${film.unit}`;
}
