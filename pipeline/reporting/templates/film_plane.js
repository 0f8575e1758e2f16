// The three planes through a film: which voxel is which pixel, and which side of the patient is where.

const [SLICE, ROW, COLUMN] = [0, 1, 2]; // film order: upwards, to posterior, to the left

class Plane {
  /** `axis` runs through the plane, `down` and `right` along its pictures; `sides` are left, right, top and bottom. */
  constructor(film, name, axis, down, right, sides) {
    Object.assign(this, { name, axis, down, right, sides });
    [this.count, this.rows, this.columns] = [film.shape[axis], film.shape[down], film.shape[right]];
    this.mm = { wide: this.columns * film.spacing_mm[right], tall: this.rows * film.spacing_mm[down] };
    this.upwards = down === SLICE; // a film runs up the body, a picture's rows run down
    const strides = [film.rows * film.columns, film.columns, 1];
    this.stride = strides[axis];
    this.rowStride = this.upwards ? -strides[down] : strides[down];
    this.columnStride = strides[right];
    this.first = this.upwards ? strides[down] * (this.rows - 1) : 0;
    this.numbering = { first: film.first[axis], stride: film.stride[axis], total: film.total[axis] };
  }

  /** Where the first pixel of a picture lies among the codes. */
  start(index) {
    return this.first + index * this.stride;
  }

  /** The pixel of a voxel [slice, row, column]. */
  pixel(voxel) {
    const down = voxel[this.down];
    return { row: this.upwards ? this.rows - 1 - down : down, column: voxel[this.right] };
  }

  /** The voxel of a pixel in the picture through `voxel`. */
  voxel(voxel, { row, column }) {
    const found = [...voxel];
    found[this.down] = this.upwards ? this.rows - 1 - row : row;
    found[this.right] = column;
    return found;
  }

  /** A picture's number in the volume that was cut and thinned, for a reader. */
  number(index) {
    const { first, stride, total } = this.numbering;
    return `${first + index * stride + 1} of ${total}`;
  }
}

const planesOf = (film) => [
  new Plane(film, "axial", SLICE, ROW, COLUMN, "RLAP"),
  new Plane(film, "coronal", ROW, SLICE, COLUMN, "RLSI"),
  new Plane(film, "sagittal", COLUMN, SLICE, ROW, "APSI"),
];
