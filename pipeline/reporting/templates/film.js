// A film: the volumes of one case as codes, their colours, and pictures of one plane. It knows pixels, no controls.

const UNKNOWN = 0xff2b2017; // ABGR, as canvases store pixels: where a volume has no voxels
const OUTLINE = 0xff4cc9f2;
const HALF = 0x7f7f7f;
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

/** Restore the codes of one track: undo base64, deflate, the byte planes and the median prediction. */
async function decode(text, rows, columns) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = bytes.length / 2;
  const codes = new Uint16Array(count);
  for (let i = 0; i < count; i++) {
    const folded = bytes[i] | (bytes[count + i] << 8);
    const column = i % columns;
    const row = ((i - column) / columns) % rows;
    const left = column ? codes[i - 1] : 0;
    const above = row ? codes[i - columns] : 0;
    const corner = row && column ? codes[i - columns - 1] : 0;
    const guess = clamp(left + above - corner, Math.min(left, above), Math.max(left, above));
    codes[i] = guess + ((folded >>> 1) ^ -(folded & 1));
  }
  return codes;
}

class Film {
  /** Take the header that the page carries: grid, windows and tracks without voxels. */
  constructor(header) {
    Object.assign(this, header);
    [, this.rows, this.columns] = header.shape;
    const kind = (name) => this.tracks.filter((track) => track.kind === name);
    [this.source, this.target, this.region] = ["source", "target", "region"].map((name) => kind(name)[0]);
    this.methods = kind("method");
    this.planes = planesOf(this);
    this.images = [...(this.source ? [this.source] : []), ...this.methods, this.target];
  }

  /** Unpack all tracks, whose texts come in their order. */
  async load(texts) {
    for (const [place, track] of this.tracks.entries()) {
      track.codes = await decode(texts[place], this.rows, this.columns);
    }
  }

  /** Whether a track shares the target's unit, so that a difference means something. */
  comparable(track) {
    return track !== this.target && !track.window;
  }

  /** The code of a track at a voxel [slice, row, column]. */
  code(track, [slice, row, column]) {
    return track.codes[(slice * this.rows + row) * this.columns + column];
  }

  /** The value of one voxel in the track's unit, or null. */
  value(track, voxel) {
    const code = this.code(track, voxel);
    return code ? track.low + (code - 1) * track.step : null;
  }

  /** The difference of a track to the target at one voxel, or null. */
  difference(track, voxel) {
    const [from, to] = [this.code(track, voxel), this.code(this.target, voxel)];
    return from && to ? (from - to) * this.target.step : null;
  }

  /** Position of a voxel in mm, RAS+. */
  world([slice, row, column]) {
    return this.affine.map((line) => line[0] * slice + line[1] * row + line[2] * column + line[3]);
  }

  /** Greys of all codes of a track for a window. */
  greys(track, { level, width }) {
    const table = new Uint32Array(track.levels + 1).fill(UNKNOWN);
    for (let code = 1; code <= track.levels; code++) {
      const value = track.low + (code - 1) * track.step;
      const grey = Math.round(clamp((value - level) / width + 0.5, 0, 1) * 255);
      table[code] = 0xff000000 | (grey * 0x010101);
    }
    return table;
  }

  /** Colours of the code differences -levels ... levels, symmetric about black; `span` is the end of the scale. */
  differences(span) {
    const { levels, step } = this.target;
    const stops = this.colours;
    return Uint32Array.from({ length: 2 * levels + 1 }, (_, place) => {
      const along = clamp(((place - levels) * step) / span / 2 + 0.5, 0, 1) * (stops.length - 1);
      const from = Math.min(Math.floor(along), stops.length - 2);
      const mix = (c) => Math.round(stops[from][c] + (along - from) * (stops[from + 1][c] - stops[from][c]));
      return 0xff000000 | (mix(2) << 16) | (mix(1) << 8) | mix(0);
    });
  }

  /** What colours a voxel of a track: place among the codes -> ABGR. */
  greyOf(track, table) {
    return (at) => table[track.codes[at]];
  }

  /** What colours a voxel's difference to the target. */
  differenceOf(track, table) {
    const [from, to, middle] = [track.codes, this.target.codes, this.target.levels];
    return (at) => (from[at] && to[at] ? table[from[at] - to[at] + middle] : UNKNOWN);
  }

  /** Fill `pixels` (ABGR) with one picture of a plane. */
  paint(pixels, plane, index, colour) {
    let pixel = 0;
    for (let row = 0; row < plane.rows; row++) {
      let at = plane.start(index) + row * plane.rowStride;
      for (let column = 0; column < plane.columns; column++, at += plane.columnStride) pixels[pixel++] = colour(at);
    }
  }

  /** Draw the edge of the region over `pixels`. */
  paintOutline(pixels, plane, index) {
    const inside = this.region.codes;
    const { rows, columns, rowStride, columnStride } = plane;
    for (let row = 0, pixel = 0; row < rows; row++) {
      let at = plane.start(index) + row * rowStride;
      for (let column = 0; column < columns; column++, pixel++, at += columnStride) {
        if (!inside[at]) continue;
        const beside = (column && !inside[at - columnStride]) || (column + 1 < columns && !inside[at + columnStride]);
        const across = (row && !inside[at - rowStride]) || (row + 1 < rows && !inside[at + rowStride]);
        if (!beside && !across) continue;
        // Half of the picture shows through.
        const mixed = ((pixels[pixel] >>> 1) & HALF) + ((OUTLINE >>> 1) & HALF);
        pixels[pixel] = 0xff000000 | mixed;
      }
    }
  }
}
